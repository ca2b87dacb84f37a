"""What the check of models adds."""

from shared.features import Acts, Command, Feature

FEATURE = Feature(
    commands=(
        Command(
            name="check",
            section="models",
            place="features.model_check.cli.commands:check",
            summary="Check how well a model calls tools.",
        ),
    ),
    acts=(Acts(meaning="how many scripted tool calls a model got right; the target is the model", harmless=("model.check",)),),
)
