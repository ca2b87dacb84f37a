"""RPC methods about accounts, their keys, profiles and passwords."""
