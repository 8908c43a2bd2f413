"""Data sets and how they are divided among clients.

`sets` names data sets and loads them, `files` reads what people bring, `partition` divides rows by flwr-datasets'
schemes, `splits` holds test rows back, `augment` changes images during training. They may import `core` alone. `all`
registers every data set. Start with `sets`.
"""
