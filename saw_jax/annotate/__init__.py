"""Labels bought from people: the ledger, the queue, and the page."""
