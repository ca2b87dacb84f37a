"""What the business report adds."""

from shared.features import Command, Feature

FEATURE = Feature(
    commands=(
        Command(
            name="report",
            section="Administer",
            place="features.business_report.cli.report:report",
            summary="Report usage and cost across all users.",
        ),
        Command(
            name="cost",
            section="Administer",
            place="features.business_report.cli.cost:cost",
            summary="What machines of your own cost, and when they cost less than an API.",
        ),
    ),
)
