/*-------------------------------------------------------------------------
 * report_style.h
 *	  How the page of evbus.report_html() looks; part of report_html.c.
 *
 * Colours are told once for light and once for dark.  Nothing is told by colour alone: levels are words,
 * lines are broken differently.  Below 760 pixels each row of a table is a card, with the heads of the
 * columns beside the values; nothing is wider than the window but what scrolls by itself.
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_REPORT_STYLE_H
#define EVBUS_REPORT_STYLE_H

static const char evbus_report_style[] =
":root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--text:#191c21;--muted:#59626f;--line:#dfe3e8;--soft:#eef0f3;"
"--s1:#2563eb;--s2:#0b8a6f;--s3:#c9341f;--s4:#a15c07;--s5:#7c3aed;--s6:#b0246f;--sx:#7b8491;--ok:#0b7a4b;--warn:#935b00;--critical:#b3261e;"
"--okbg:#e2f5ea;--warnbg:#fdf0d5;--criticalbg:#fde7e4}\n"
"@media (prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#181c22;--text:#e6e9ee;--muted:#9ba5b3;--line:#2d343e;--soft:#222831;"
"--s1:#74a9ff;--s2:#3fcfae;--s3:#ff8a75;--s4:#f2b84b;--s5:#bda4ff;--s6:#ff8ac4;--sx:#8c96a3;--ok:#5fd39a;--warn:#f5bf55;--critical:#ff8f84;"
"--okbg:#15301f;--warnbg:#3a2c0c;--criticalbg:#42181a}}\n"
"*{box-sizing:border-box}\n"
"body{margin:0;padding:24px 20px 40px;background:var(--bg);color:var(--text);font:15px/1.45 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",sans-serif;"
"font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%;text-size-adjust:100%}\n"
"body>*{max-width:1180px;margin-left:auto;margin-right:auto}\n"
"h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:18px;margin:36px 0 10px}h3{font-size:15px;margin:0 0 10px}\n"
"h3 small{font-weight:400;color:var(--muted);font-size:13px}\n"
"bdi,dd,code,pre{overflow-wrap:anywhere}\n"
"header p{margin:0;color:var(--muted);display:flex;flex-wrap:wrap;gap:0 16px}header span{min-width:0;overflow-wrap:anywhere}.note,.more,.empty{color:var(--muted);font-size:13px;margin:8px 0 0}.empty{font-size:14px;margin:0}\n"
"code,pre{font:13px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}pre{margin:0;white-space:pre-wrap}\n"
".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0}\n"
".grid2{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));align-items:stretch}.grid2>*{min-width:0}.stack{display:grid;gap:16px;align-content:start}.gap{height:16px}\n"
".tiles{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));margin:16px auto}\n"
".tiles div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}\n"
".tiles dt{color:var(--muted);font-size:13px}.tiles dd{margin:2px 0 0;font-size:23px;font-weight:600;line-height:1.2}.tiles dd small{font-size:13px;font-weight:400;color:var(--muted)}\n"
".state{margin-top:18px;border-left-width:5px}.state.ok{border-left-color:var(--ok)}.state.warn{border-left-color:var(--warn)}.state.critical{border-left-color:var(--critical)}\n"
".state>p{margin:0}.findings{list-style:none;margin:12px 0 0;padding:0}.findings li{padding:8px 0;border-top:1px solid var(--line)}.findings p{margin:1px 0 0}.findings .hint{color:var(--muted);font-size:13px}\n"
".pill{display:inline-block;border-radius:99px;padding:1px 9px;font-size:12px;font-weight:600;white-space:nowrap;margin-right:4px}\n"
".pill{background:var(--soft)}.pill.ok{color:var(--ok);background:var(--okbg)}.pill.warn{color:var(--warn);background:var(--warnbg)}.pill.critical{color:var(--critical);background:var(--criticalbg)}\n"
".legend{list-style:none;margin:10px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 16px;font-size:13px}.legend span{color:var(--muted)}.legend svg{margin-right:5px;vertical-align:-1px}\n"
".frame{padding-left:46px}.plot{display:block;overflow:visible}.plot text,.ticks text{fill:var(--muted);font-size:12px}.ticks text{font-size:11px}\n"
".grid{stroke:var(--line)}.axis{stroke:var(--muted)}.hit{fill:var(--text);fill-opacity:0}.hit:hover{fill-opacity:.09}\n"
".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round;vector-effect:non-scaling-stroke}.area{stroke:none;fill-opacity:.13}\n"
".s1{stroke:var(--s1);fill:var(--s1)}.s2{stroke:var(--s2);fill:var(--s2)}.s3{stroke:var(--s3);fill:var(--s3)}.s4{stroke:var(--s4);fill:var(--s4)}.s5{stroke:var(--s5);fill:var(--s5)}.s6{stroke:var(--s6);fill:var(--s6)}.sx{stroke:var(--sx);fill:var(--sx)}\n"
".line{fill:none}.col{stroke:none}.area{stroke:none}.line.s2{stroke-dasharray:10 3}.line.s3{stroke-dasharray:2 4}.line.s4{stroke-dasharray:9 3 2 3}.line.s5{stroke-dasharray:4 3}.line.sx{stroke-dasharray:1 4}\n"
".col.s2{fill-opacity:.45}.soft{fill-opacity:.35}.track{fill:var(--soft)}.p1{fill-opacity:.75}.spark,.bar,.range,.ticks{display:block}.ticks{overflow:visible;min-width:180px}.range{min-width:180px}.bar{min-width:80px}.spark .line{stroke-width:1.5}\n"
"details{margin-top:8px;font-size:13px}summary{cursor:pointer;color:var(--muted)}.scroll{overflow:auto;max-height:320px}\n"
"table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:600;vertical-align:bottom}thead th{color:var(--muted);font-size:12px;font-weight:500;border-bottom:1px solid var(--line)}\n"
"th,td{padding:7px 10px 7px 0}td,tbody th{vertical-align:top;border-bottom:1px solid var(--line)}tbody tr:last-child>*{border-bottom:0}.n{text-align:right;white-space:nowrap}thead .n{white-space:normal}th:last-child,td:last-child{padding-right:0}\n"
".z{color:var(--muted)}.n+td:not(.n),.n+th:not(.n){padding-left:10px}.rows tbody th{min-width:8.5em}tbody small{display:block;color:var(--muted);font-weight:400;font-size:12px}details table{font-size:13px}details th,details td{padding:3px 12px 3px 0}\n"
"footer{margin-top:36px;color:var(--muted);font-size:13px}footer p{margin:6px 0}:focus-visible{outline:2px solid var(--s1);outline-offset:2px}\n"
"@media (max-width:760px){body{padding:16px 12px 32px}h1{font-size:22px}.card{padding:13px 13px}.tiles{grid-template-columns:repeat(auto-fit,minmax(136px,1fr));gap:8px}.frame{padding-left:40px}\n"
".rows thead{display:none}.rows,.rows tbody,.rows tr,.rows th,.rows td{display:block}.rows tr{padding:10px 0;border-bottom:1px solid var(--line)}.rows tr:first-child{padding-top:0}.rows tr:last-child{border-bottom:0;padding-bottom:0}\n"
".rows tbody th,.rows tbody td{border:0;padding:2px 0}.rows td{display:flex;justify-content:space-between;gap:12px;text-align:right;white-space:normal}.rows td::before{content:attr(data-head);color:var(--muted);font-size:13px;text-align:left;flex:0 0 auto}\n"
".rows td.wide{display:block;text-align:left}.rows td.wide::before{display:block}.rows td.none{display:none}.range{min-width:0}}\n"
"@media print{body{background:#fff;padding:0}.card,.tiles div{break-inside:avoid}details{display:none}}\n";

#endif
