"""The five services, each a program of its own; they meet over RPC and never import each other."""
