"""How many bytes of text a token has where nobody has counted it yet. Pure."""

#: English and code have about four, other languages fewer.
BYTES_IN_A_TOKEN = 3
