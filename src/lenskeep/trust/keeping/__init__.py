"""Keeping a repository: the work of the people who hold its keys, and of the server that renews what is short-lived.

Everything here works on a folder (`workspace`), reads what is in force from signatures alone (`state`), and puts
nothing in its place that a device would refuse (`settling`). Keys come in as `Signer`s; the time comes in as `now_s`.
"""
