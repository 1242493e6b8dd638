"""Built-in jobs on real data: something to run in the first minute.

The descriptions stand here, not in the jobs' own files, so that they can be printed
before torch is imported.
"""

BUILT_IN = {
    "contrastive_digits": "the same digits, pairs of views, two towers, InfoNCE, Adam",
    "digits": "1,797 scanned digits, small MLP, SGD with momentum",
    "rare_class": "the same digits, one class thinned to 0.8 %, judged class by class",
    "stdlib_gpt": "bytes of Python's own library, transformer, AdamW",
}
