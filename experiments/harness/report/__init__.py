"""What a run found: statistics, sentences, tables, figures, pages."""
