"""What hello adds."""

from shared.features import Acts, Command, Feature

FEATURE = Feature(
    commands=(
        Command(
            name="hello",
            section="Account",
            place="features.hello.cli.commands:hello",
            summary="Say hello.",
        ),
    ),
    acts=(Acts(meaning="greetings of someone by name", harmless=("hello.say",)),),
)
