"""What a run leaves behind: folder, record, report, page, model card."""
