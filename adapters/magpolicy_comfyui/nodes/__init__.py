"""The nodes: their inputs, what their menus offer, and what they show. They settle what is asked and attach; runs are not made here."""
