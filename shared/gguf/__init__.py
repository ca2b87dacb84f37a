"""The format of model files: reads and checks their headers. Pure of llama.cpp and of services."""
