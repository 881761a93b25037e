"""What other settings of drafting would have written, computed from one recording and tables of cost."""
