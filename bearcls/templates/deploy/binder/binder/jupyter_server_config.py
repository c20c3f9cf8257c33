"Settings of Jupyter's server on Binder: what voila.py says about messages and other hosts holds here too"
c = get_config()  # noqa: F821
load_subconfig('../voila.py')  # noqa: F821
c.ServerApp.tornado_settings = c.Voila.tornado_settings
