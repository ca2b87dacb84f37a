"""What the usage export adds."""

from shared.features import Command, Feature

FEATURE = Feature(
    commands=(
        Command(
            name="usage-export",
            section="admin",
            place="features.usage_export.cli.commands:usage_export",
            summary="Export usage to billing systems.",
        ),
    )
)
