"""How many rows of logits are held at once. Imports no torch, as memory is reckoned from it too."""

# Elements of a chunk's logits. On a GPU 1 GiB in 16 bit: with 50,304 classes 10,672 rows, enough
# for the products to reach their rate and for the matrix's fp32 gradient to be read and written
# seldom. On a CPU 16 MiB in 16 bit, with many classes what the least rows take: 98 MiB with 50,304.
CHUNK_ELEMENTS = {"cuda": 1 << 29, "cpu": 1 << 23}
_LEAST_ROWS = 1024
# Elements of an fp32 copy: on a CPU 4 MiB, which stay in the cache from pass to pass.
BLOCK_ELEMENTS = {"cuda": 1 << 26, "cpu": 1 << 20}
# Of one on a CPU that is used once: 1 MiB in fp32. With 4 the heap that all steps share kept 16 MB
# more between its blocks, and a small model's step took 1 % longer.
COPY_ELEMENTS = 1 << 18


def chunk_rows(device_type: str, n_classes: int) -> int:
    """Rows of logits that are held at once."""
    elements = CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["cpu"])
    return max(_LEAST_ROWS, elements // n_classes)


def block_rows(device_type: str, n_classes: int) -> int:
    """Rows of a chunk of which there are copies in fp32 at once."""
    elements = BLOCK_ELEMENTS.get(device_type, BLOCK_ELEMENTS["cpu"])
    return max(1, elements // n_classes)


def copy_rows(n_columns: int) -> int:
    """Rows of a matrix that are copied at once on a CPU."""
    return max(1, COPY_ELEMENTS // n_columns)


def equal(n_rows: int, most: int) -> int:
    """Rows of each chunk where `n_rows` are cut into as few equal ones as `most` allows."""
    n_chunks = max(1, -(-n_rows // most))
    return max(1, -(-n_rows // n_chunks))
