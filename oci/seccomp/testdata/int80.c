/*
 * Loads the seccomp filter given on stdin, if any, and makes i386 system calls: each argument is
 * "NUMBER,ARG0,ARG1". Prints what they return.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static struct sock_filter filter[4096];

static long int80(long nr, long a, long b)
{
	long ret;

	__asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a), "c"(b), "d"(0) : "memory", "r8", "r9", "r10", "r11");
	return (int)ret;
}

int main(int argc, char **argv)
{
	size_t n = fread(filter, sizeof(filter[0]), 4096, stdin);
	struct sock_fprog prog = { .len = n, .filter = filter };

	if (n > 0 && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))) {
		perror("seccomp");
		return 3;
	}
	for (int i = 1; i < argc; i++) {
		long nr, a, b;

		if (sscanf(argv[i], "%ld,%ld,%ld", &nr, &a, &b) != 3)
			return 4;
		printf("%ld\n", int80(nr, a, b));
	}
	return 0;
}
