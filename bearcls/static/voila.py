"""Settings of Voilà for an application that strangers use. Voilà reads this file from the folder in which it is started, under the name voila.py.

Start it as `voila app.ipynb`, not as `python -m voila`, which would take this file for Voilà itself.
"""
from datetime import datetime, timezone
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

c = get_config()  # noqa: F821

class PatientKernels(AsyncMappingKernelManager):
    """A kernel that waits for a visitor is idle for hours. Its clock starts when it has one: otherwise it could be ended between the moment
    in which it is given to a page and the moment in which the page speaks to it."""
    async def cull_kernel_if_idle(self, kernel_id):  # not called for those that wait
        met = self.__dict__.setdefault('kernels_met', set())
        met &= set(self._kernels)
        if kernel_id not in met: self._kernels[kernel_id].last_activity = datetime.now(timezone.utc)
        met.add(kernel_id)
        await super().cull_kernel_if_idle(kernel_id)

# One kernel has run the notebook already when a visitor comes, and another gets ready at once for the next
c.VoilaConfiguration.preheat_kernel = True
c.VoilaConfiguration.default_pool_size = 1
c.VoilaConfiguration.multi_kernel_manager_class = PatientKernels

# A kernel lives as long as its page is open; it ends when the page is closed, or within 45 seconds of the page's silent death
c.MappingKernelManager.cull_interval = 10
c.MappingKernelManager.cull_idle_timeout = 30

# A picture that the browser cannot make smaller may have 8 MB. Nothing is loaded from other hosts: Voilà's page asks for icons, which are not needed
c.Voila.tornado_settings = {
    'websocket_max_message_size': 16 << 20,
    'compress_response': True,  # Voilà's own scripts have 5 MB
    'disable_check_xsrf': True,  # Voilà's page says goodbye to its kernel with a token that Voilà never gave it; who knows a kernel's id may end it
    'headers': {
        'Content-Security-Policy': "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' ws: wss: data: blob:; frame-ancestors 'self'; object-src 'none'",
        'Referrer-Policy': 'same-origin',
        'X-Content-Type-Options': 'nosniff',
    },
}

# Visitors see the page, and nothing else of the folder or of Python's errors
c.VoilaConfiguration.show_tracebacks = False
c.VoilaConfiguration.file_denylist = ['.*']
c.VoilaConfiguration.allow_template_override = 'NO'
c.VoilaConfiguration.allow_theme_override = 'NO'
c.Voila.log_level = 'WARN'
