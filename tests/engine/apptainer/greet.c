// SPDX-License-Identifier: Apache-2.0
/* The only program of app.sif: with no library and no shell, so that the file is small, and all of it ours.
 *
 *     greet SCRIPT WORD...     what the kernel runs for a script that begins with #!/bin/greet
 *     greet = FILE             show a file
 *     greet + FILE             make a file with its name in it, and show that
 */
#include <asm/unistd.h>
#include <stddef.h>

#define WRONLY_CREAT_EXCL 0301

static long call(long number, long a, long b, long c)
{
	long answer;

	__asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return answer;
}

static size_t length(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static void say(const char *text)
{
	call(__NR_write, 1, (long)text, (long)length(text));
}

static int show(const char *path)
{
	char data[512];
	long fd = call(__NR_open, (long)path, 0, 0), n;

	if (fd < 0)
		return 1;
	while ((n = call(__NR_read, fd, (long)data, sizeof(data))) > 0)
		call(__NR_write, 1, (long)data, n);
	return n != 0;
}

static int make(const char *path)
{
	long fd = call(__NR_open, (long)path, WRONLY_CREAT_EXCL, 0600), n = (long)length(path);

	return fd < 0 || call(__NR_write, fd, (long)path, n) != n || show(path);
}

static const char *variable(char **environment, const char *name)
{
	size_t n = length(name), i;

	for (; *environment; environment++) {
		for (i = 0; i < n && (*environment)[i] == name[i]; i++)
			;
		if (i == n && (*environment)[n] == '=')
			return *environment + n + 1;
	}
	return "nothing";
}

__attribute__((used)) int greet(long *stack)
{
	long count = *stack;
	char **words = (char **)(stack + 1), **environment = words + count + 1;

	if (count == 3 && words[1][0] == '=')
		return show(words[2]);
	if (count == 3 && words[1][0] == '+')
		return make(words[2]);
	say(variable(environment, "GREETING"));
	for (long i = 2; i < count; i++) {
		say(" ");
		say(words[i]);
	}
	say("\n");
	return 0;
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall greet\n\tmov %eax, %edi\n"
	"\tmov $60, %eax\n\tsyscall\n");
