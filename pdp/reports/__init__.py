"""Reports: tables, figures and pages made from records and published numbers. Nothing here needs torch."""
