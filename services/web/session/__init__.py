"""Who asks: sessions, form tokens, and which pages a person may open."""
