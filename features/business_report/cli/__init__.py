"""The commands `report` and `cost`."""
