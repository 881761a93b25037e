"""Records of a tiny target to put into a store."""

from specdec.selftext.record import Record

FACTS = {
    "model_type": "llama",
    "hidden_size": 8,
    "vocab_size": 61,
    "layers": 2,
    "fingerprint": "ab",
}


def record(number, tokens=20, part=0):
    ids = [(number * 31 + i * i) % 61 for i in range(tokens)]
    return Record(number, part, "facts", 0.8, ids, [5, 3, 4, tokens - 12], cut=number)
