"""What is told: messages in two languages, the module log, the journal, the commands log, one timeline of them."""
