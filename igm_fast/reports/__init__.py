"""What a run left in its folder, told honestly: statistics, figures, report.html, tables of many runs."""
