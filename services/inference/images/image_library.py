"""The binding of libmtmd, llama.cpp's library that makes embeddings of images (stack/servers/engine_libraries.py).

Only the engine's process and tests load it. llama-cpp-python's own binding needs functions that we don't build.
"""

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import llama_cpp.llama_cpp as native

from services.inference import missing_libraries

#: mtmd_input_chunk_type
TEXT_CHUNK, IMAGE_CHUNK = 0, 1


class ContextParameters(ctypes.Structure):
    """mtmd_context_params of mtmd.h."""

    _fields_ = (
        ("use_gpu", c_bool),
        ("device", c_void_p),
        ("print_timings", c_bool),
        ("n_threads", c_int),
        ("image_marker", c_char_p),
        ("media_marker", c_char_p),
        ("flash_attn_type", c_int),
        ("warmup", c_bool),
        ("image_min_tokens", c_int),
        ("image_max_tokens", c_int),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
    )


class NativeText(ctypes.Structure):
    """mtmd_input_text."""

    _fields_ = (("text", c_char_p), ("text_len", c_size_t), ("add_special", c_bool), ("parse_special", c_bool))


class NativePart(ctypes.Structure):
    """mtmd_input_part: a text or a bitmap."""

    _fields_ = (("text", POINTER(NativeText)), ("bitmap", c_void_p))


class RowPosition(ctypes.Structure):
    """mtmd_decoder_pos."""

    _fields_ = (("t", c_uint32), ("x", c_uint32), ("y", c_uint32), ("z", c_uint32))


#: What a function returns, and its arguments.
_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "mtmd_context_params_default": (ContextParameters, ()),
    "mtmd_init_from_file": (c_void_p, (c_char_p, c_void_p, ContextParameters)),
    "mtmd_free": (None, (c_void_p,)),
    "mtmd_log_set": (None, (native.llama_log_callback, c_void_p)),
    "mtmd_support_vision": (c_bool, (c_void_p,)),
    "mtmd_decode_use_non_causal": (c_bool, (c_void_p, c_void_p)),
    "mtmd_decode_use_mrope": (c_bool, (c_void_p,)),
    "mtmd_bitmap_init": (c_void_p, (c_uint32, c_uint32, c_char_p)),
    "mtmd_bitmap_set_id": (None, (c_void_p, c_char_p)),
    "mtmd_bitmap_free": (None, (c_void_p,)),
    "mtmd_input_chunks_init": (c_void_p, ()),
    "mtmd_input_chunks_free": (None, (c_void_p,)),
    "mtmd_input_chunks_size": (c_size_t, (c_void_p,)),
    "mtmd_input_chunks_get": (c_void_p, (c_void_p, c_size_t)),
    "mtmd_tokenize_from_parts": (c_int32, (c_void_p, c_void_p, POINTER(POINTER(NativePart)), c_size_t, c_bool)),
    "mtmd_input_chunk_get_type": (c_int, (c_void_p,)),
    "mtmd_input_chunk_get_n_tokens": (c_size_t, (c_void_p,)),
    "mtmd_input_chunk_get_n_pos": (c_int32, (c_void_p,)),
    "mtmd_input_chunk_get_id": (c_char_p, (c_void_p,)),
    "mtmd_input_chunk_get_tokens_text": (POINTER(c_int32), (c_void_p, POINTER(c_size_t))),
    "mtmd_input_chunk_get_tokens_image": (c_void_p, (c_void_p,)),
    "mtmd_image_tokens_get_decoder_pos": (RowPosition, (c_void_p, c_int32, c_size_t)),
    "mtmd_encode_chunk": (c_int32, (c_void_p, c_void_p)),
    "mtmd_get_output_embd": (POINTER(c_float), (c_void_p,)),
}


def load(path: Path = missing_libraries.IMAGES) -> ctypes.CDLL:
    """Raises OSError if the library was not built."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
