"""How zeros are stored: one class for each format, all with `from_dense`, `to_dense`, `matmul` and `nbytes`. Part V.

store(W)                                  # the smallest format for this matrix
store(W, "bitmask").nbytes
FORMATS["csr"].from_dense(W).matmul(X)    # X W^T
save_model(model, tokenizer, "folder")    # minprune.load_model("folder") reads it
"""

from minprune.formats.bitmask import Bitmask
from minprune.formats.block import BSR
from minprune.formats.choose import FORMATS, predicted_bytes, store
from minprune.formats.csr import CSC, CSR
from minprune.formats.disk import save_model
from minprune.formats.integers import Integers
from minprune.formats.nm import NMPacked
from minprune.formats.stored import Dense, SparseMatrix

__all__ = [
    "CSC", "CSR", "FORMATS", "BSR", "Bitmask", "Dense", "Integers", "NMPacked", "SparseMatrix", "predicted_bytes",
    "save_model", "store",
]  # fmt: skip
