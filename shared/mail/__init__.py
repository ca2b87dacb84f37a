"""Send email: form, delivery over SMTP, and a queue for when the server is down."""
