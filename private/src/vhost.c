/* A virtual host name for the processes that are started with it (guide 13.8).
 *
 * Preloaded by the environment file of <virtualhostname>: gethostname() and uname() tell the name in
 * SAFEKIT_VHOSTNAME instead of the name of the server. Without that variable nothing changes. Programs that are
 * linked statically or run set-user-id do not load it.
 *
 * uname is asked from the kernel directly, so that nothing needs the C library's own version of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

int uname(struct utsname *name)
{
	const char *virtual = getenv("SAFEKIT_VHOSTNAME");

	if (syscall(SYS_uname, name) != 0)
		return -1;
	if (virtual != NULL && *virtual != '\0') {
		size_t length = strlen(virtual);

		if (length >= sizeof(name->nodename))
			length = sizeof(name->nodename) - 1;
		memcpy(name->nodename, virtual, length);
		name->nodename[length] = '\0';
	}
	return 0;
}

int gethostname(char *buffer, size_t size)
{
	struct utsname name;
	size_t needed;

	if (uname(&name) != 0)
		return -1;
	needed = strlen(name.nodename) + 1;
	if (size < needed) {
		memcpy(buffer, name.nodename, size);
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(buffer, name.nodename, needed);
	return 0;
}

/* What programs built with _FORTIFY_SOURCE call instead. */
int __gethostname_chk(char *buffer, size_t size, size_t room)
{
	if (size > room)
		abort();
	return gethostname(buffer, size);
}
