"""What auth's mails say; `shared.mail` sends them."""
