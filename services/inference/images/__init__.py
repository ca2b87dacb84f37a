"""Images for models that see: decoded in the chat process, and turned into embeddings in the engine's process."""

from services.inference import missing_libraries

#: llama.cpp's library for images.
LIBRARY = missing_libraries.path("libaimesh_images")
