"""Who may sign what, what is current, who this device is, and what happened: proofs, made and checked.

A repository of signed roles in the standard TUF form, device keys and certificates, signed envelopes, the hash chain of
the record. No network, no SQL, no clock of its own: bytes, keys and `now` in, verdicts out. The process of this room
(`python -m lenskeep.trust`) decides about metadata for the daemon, without network and without rights.
"""
