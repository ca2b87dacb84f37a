"""The engine: llama.cpp in a child process. Pure parts decide, `llama_model` computes, `engine_process` speaks to the worker."""
