"""The stack on one machine: PostgreSQL, Valkey and NATS servers, the five services, and the supervisor that runs them."""
