"""The labeling server: `app` puts it together behind `security`; `entrance`, `work`, `manage`, `review` serve pages."""
