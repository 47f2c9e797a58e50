/*
 * Builds filters with libseccomp, the way runc does, for the differential test.
 *
 * Requests, one per line on stdin (numbers in hex but for tokens and counts):
 *   new DEFAULT OPTIMIZE NATIVE   start a filter; NATIVE 0 drops the native architecture
 *   arch TOKEN                    add an architecture
 *   rule ACTION NAME COUNT [INDEX OP A B]...
 *   number NAME TOKEN             answered with the syscall's number, negative if it has none
 *   export                        answered with "ok" and the program in hex, or "error N"
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void export(scmp_filter_ctx ctx, int rc)
{
	unsigned char buf[8];
	FILE *f = tmpfile();

	if (rc == 0 && f != NULL)
		rc = seccomp_export_bpf(ctx, fileno(f));
	if (rc != 0 || f == NULL) {
		printf("error %d\n", rc);
	} else {
		printf("ok ");
		rewind(f);
		while (fread(buf, 1, sizeof(buf), f) == sizeof(buf))
			for (size_t i = 0; i < sizeof(buf); i++)
				printf("%02x", buf[i]);
		printf("\n");
	}
	if (f != NULL)
		fclose(f);
	fflush(stdout);
}

static int rule(scmp_filter_ctx ctx)
{
	char name[128];
	unsigned int action, n;
	struct scmp_arg_cmp args[6];
	int nr;

	if (scanf("%x %127s %u", &action, name, &n) != 3 || n > 6)
		exit(2);
	for (unsigned int i = 0; i < n; i++) {
		unsigned int index, op;
		unsigned long long a, b;

		if (scanf("%u %u %llx %llx", &index, &op, &a, &b) != 4)
			exit(2);
		args[i] = SCMP_CMP64(index, op, a, b);
	}
	nr = seccomp_syscall_resolve_name(name);
	if (nr == __NR_SCMP_ERROR)
		return 0;
	return seccomp_rule_add_array(ctx, action, nr, n, args);
}

int main(void)
{
	char verb[16], name[128];
	scmp_filter_ctx ctx = NULL;
	int rc = 0;

	while (scanf("%15s", verb) == 1) {
		unsigned int a, optimize, native;

		if (strcmp(verb, "new") == 0 && scanf("%x %u %u", &a, &optimize, &native) == 3) {
			seccomp_release(ctx);
			ctx = seccomp_init(a);
			if (ctx == NULL)
				exit(2);
			rc = 0;
			if (optimize)
				rc = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
			if (!native && rc == 0)
				rc = seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE);
		} else if (strcmp(verb, "arch") == 0 && scanf("%u", &a) == 1) {
			int r = seccomp_arch_add(ctx, a);
			if (r != 0 && r != -EEXIST && rc == 0)
				rc = r;
		} else if (strcmp(verb, "rule") == 0) {
			int r = rule(ctx);
			if (rc == 0)
				rc = r;
		} else if (strcmp(verb, "number") == 0 && scanf("%127s %u", name, &a) == 2) {
			printf("%d\n", seccomp_syscall_resolve_name_arch(a, name));
			fflush(stdout);
		} else if (strcmp(verb, "export") == 0) {
			export(ctx, rc);
		} else {
			exit(2);
		}
	}
	return 0;
}
