"""Images for models that see: decoded in the chat process, and turned into embeddings in the engine's process."""

import sys
from pathlib import Path

#: Where stack/servers/engine_libraries.py builds llama.cpp's library for images.
LIBRARY = Path(sys.prefix) / "lib" / "libaimesh_images.so"
