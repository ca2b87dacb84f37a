"""The five services, each a separate program; they meet over RPC and never import each other."""
