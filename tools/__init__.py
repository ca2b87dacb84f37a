"""Programs for those who work on aimesh: set-up and documentation. Nothing here runs for users of an installed package."""
