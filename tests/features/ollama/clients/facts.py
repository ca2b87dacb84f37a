"""What tests/clients has to know of Ollama's client."""

#: They know only a port of their machine, where `aicli serve` is.
LOCAL = {"ollama"}
#: Client -> the number of its checks.
CHECKS = {"ollama": 124}
