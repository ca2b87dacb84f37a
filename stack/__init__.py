"""The stack on one machine: real PostgreSQL, Valkey and NATS servers, the five services, and the supervisor that keeps them."""
