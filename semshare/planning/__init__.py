"""From what was found to the reuse plan. No layer runs here."""
