"""Parts of a report: words, clips, pictures and the page's template."""
