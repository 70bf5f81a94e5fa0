// Command lib is libtoedit: package capi as a C library (-buildmode=c-shared or c-archive). Its header is capi/toedit.h.
package main

import _ "toedit/capi"

func main() {}
