"""The labeling server: `app` puts it together, `security` guards it; `entrance`, `work` and `manage` serve pages."""
