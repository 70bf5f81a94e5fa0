#include "signals.h"

#include <signal.h>
#include <stdlib.h>

struct toedit_signals {
  struct sigaction actions[NSIG];
  unsigned char known[NSIG]; /* some numbers are the C library's own */
};

struct toedit_signals* toedit_signals_keep(void) {
  struct toedit_signals* kept = calloc(1, sizeof *kept);
  if (kept == NULL) return NULL;
  for (int i = 1; i < NSIG; i++) kept->known[i] = sigaction(i, NULL, &kept->actions[i]) == 0;
  return kept;
}

void toedit_signals_restore(struct toedit_signals* kept) {
  if (kept == NULL) return;
  for (int i = 1; i < NSIG; i++) {
    struct sigaction now;
    if (!kept->known[i] || sigaction(i, NULL, &now) != 0) continue;
    struct sigaction* then = &kept->actions[i];
    if (now.sa_handler != then->sa_handler || now.sa_flags != then->sa_flags) sigaction(i, then, NULL);
  }
  free(kept);
}
