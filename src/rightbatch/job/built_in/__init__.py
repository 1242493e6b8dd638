"""Built-in jobs on real data: something to run in the first minute.

The descriptions stand here, not in the jobs' own files, so that they can be printed
before torch is imported.
"""

BUILT_IN = {
    "digits": "1,797 scanned digits, small MLP, SGD with momentum",
    "stdlib_gpt": "bytes of Python's own library, transformer, AdamW",
}
