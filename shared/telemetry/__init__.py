"""stub: being written"""


class Metrics:
    def __init__(self, service: str) -> None: ...
