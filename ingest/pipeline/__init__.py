"""The write path: spool, Synapse, writer and ledger."""
