"""What autoscaling adds."""

from shared.features import Command, Feature

FEATURE = Feature(
    commands=(
        Command(
            name="scale",
            section="Administer",
            place="features.autoscaling.cli.commands:scale",
            summary="Show and plan how many workers each model needs.",
        ),
    ),
    items=("pool",),
)
