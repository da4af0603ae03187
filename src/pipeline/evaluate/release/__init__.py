"""Whether and how weights may go to others: licences, memorisation, the released card, the brainmarks plug-in."""
