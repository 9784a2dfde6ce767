"""Golden safetensors files from the Python package, and its reading of the files torchlore writes.

    python tensor_file_oracle.py make DIR      writes the golden files (needs torch, safetensors)
    python tensor_file_oracle.py check FILE    reads a file that torchlore wrote from the same tensors
                                               (needs safetensors only)
    python tensor_file_oracle.py digest FILE   prints name, dtype, shape and CRC-32 of each tensor

Exit code 77: the package is missing.
"""

import json
import sys
import zlib

try:
    import safetensors
except ImportError:
    print("the Python package 'safetensors' is not installed")
    sys.exit(77)

# Every dtype of the format that LibTorch has, with its width in bytes.
DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4,
    "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}
METADATA = {"format": "pt \u00e9\n\t\"\\/\x01\x7f"}


def pattern(dtype, elements):
    """Bytes that differ from element to element; 0 and 1 for BOOL. tensor_file_test.cpp has its twin."""
    count = elements * DTYPES[dtype]
    return bytes(i % 2 if dtype == "BOOL" else (7 * i + 3) % 251 for i in range(count))


def tensors():
    """name -> (dtype, shape, bytes)"""
    result = {}
    for dtype in DTYPES:
        for suffix, shape, elements in (("", [2, 3], 6), ("/scalar", [], 1), ("/empty", [0, 3], 0)):
            result[dtype.lower() + suffix] = (dtype, shape, pattern(dtype, elements))
    result["f4"] = ("F4", [2, 6], bytes(range(6)))
    result["name \u00e9\u4e2d\n\"\\"] = ("F32", [1, 1, 1], pattern("F32", 1))
    return result


def make(folder):
    import torch
    from safetensors.torch import save_file

    kinds = {
        "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
        "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
        "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
        "F4": torch.float4_e2m1fn_x2,
    }

    def tensor(dtype, shape, data):
        if dtype == "F4":
            return torch.tensor(list(data), dtype=torch.uint8).view(2, 3).view(kinds[dtype])
        if not data:
            return torch.empty(shape, dtype=kinds[dtype])
        return torch.frombuffer(bytearray(data), dtype=kinds[dtype]).reshape(shape)

    all_tensors = {name: tensor(*parts) for name, parts in tensors().items()}
    save_file(all_tensors, f"{folder}/all_dtypes.safetensors", metadata=METADATA)
    save_file({}, f"{folder}/nothing.safetensors")


def read(file):
    """name -> (dtype, shape, bytes), by the package's own parser."""
    with open(file, "rb") as stream:
        content = stream.read()
    return {name: (view["dtype"], list(view["shape"]), bytes(view["data"]))
            for name, view in safetensors.deserialize(content)}


def check(file):
    found, expected = read(file), tensors()
    assert found.keys() == expected.keys(), (found.keys() ^ expected.keys())
    for name, parts in expected.items():
        assert found[name] == parts, (name, found[name], parts)
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    assert header["__metadata__"] == METADATA, header["__metadata__"]
    print(f"{len(found)} tensors as expected")


def digest(file):
    for name, (dtype, shape, data) in sorted(read(file).items()):
        print(name, dtype, "x".join(map(str, shape)) or "-", zlib.crc32(data))


if __name__ == "__main__":
    {"make": make, "check": check, "digest": digest}[sys.argv[1]](sys.argv[2])
